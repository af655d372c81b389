"""Pictures, sounds and videos: from files to the exact numbers that the embedders take."""
