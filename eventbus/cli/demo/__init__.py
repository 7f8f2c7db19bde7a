"""`eventbus demo`: a small reading club (`club`), run in processes and shown step by step (`show`)."""
