"""The experiments that the notebooks show, one module each; `zqlib.workflow` runs their parts.

They run what is missing, keep intermediate results below `work/` under names made of everything
that they depend on (weights, data, settings, sources), and write records below
`results/<profile>/`. Interrupted, they go on where they were.
"""
