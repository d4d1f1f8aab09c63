"""Integer programs and the backends that execute them; knows no model family and no float."""
