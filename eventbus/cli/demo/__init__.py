"""`eventbus demo`: a small reading club (`club`) that runs in processes of its own (`workers`) and is shown and checked (`show`)."""
