"""What those who run the server need: numbers for Prometheus, a key for clients, a log for programs."""
