"""What a suite says of chats, how a chat becomes a prompt, and how a text thinks."""
