"""Chats as the model sees them: one rendering for counting, training and generation."""
