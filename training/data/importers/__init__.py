"""Files as people have them, read row by row, and the shapes of chats and prompts in them."""
