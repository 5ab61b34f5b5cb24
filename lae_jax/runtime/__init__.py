"""What every program needs: errors, files and folders, checksums, checkpoints, the console, cores, devices."""
