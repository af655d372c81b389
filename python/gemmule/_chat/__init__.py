"""Conversations: messages, templates, the reading of replies, tools and structured answers."""
