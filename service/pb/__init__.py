"""Python code generated from proto/ by `python -m service.pb.generate`; committed, never edited."""
