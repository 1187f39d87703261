"""What is known of a speaker: sentence embeddings, profile facts, who writes them, and the FAISS store."""
