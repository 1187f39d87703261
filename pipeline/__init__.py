"""The stages, from a corpus to a report, and the command that runs them."""
