"""What a compiled step costs on an accelerator that is not there, and what that allows."""
