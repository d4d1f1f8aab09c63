"""What the book and the README show of the records: claims and verdicts, costs, audio."""
