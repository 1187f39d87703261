"""The report: what stands on its page, the plots, and how it looks."""
