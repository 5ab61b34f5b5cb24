"""The page and the API of a run: uploads (limits), shared batches (batching, ages), answers (app), sockets (listen)."""
