"""Dynamic Parameter Memory: a temporary LoRA that remembers a conversation while it lasts."""
