"""Chats, the template that writes them, and what of a written chat is scored."""
