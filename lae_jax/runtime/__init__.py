"""What every program needs: errors, files and folders, checksums, checkpoints, console, CPU cores, devices."""
