"""The user's own files: what lies in a folder, table or archive, what its images are, and how it is divided into splits."""
