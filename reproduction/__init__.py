"""The paper's tables and pictures, made again and shown side by side with ours."""
