"""The paper's tables and images, made again and shown side by side with ours."""
