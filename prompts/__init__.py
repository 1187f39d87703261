"""One dialogue as a prompt: the prompt tree, its wording, its rendering and its tokens."""
