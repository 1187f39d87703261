"""Dialogues, label sets, speakers, and a reader for each corpus."""
