"""What is wrong with preferences, alone or for a model, and how to fix it; nothing here trains."""
