"""What a served model is made of, read without loading it: sizes of its layers, bytes of its checkpoint."""
