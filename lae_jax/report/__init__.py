"""What people look at: pages, tables and pictures of evaluations, made from what stands in their folders."""
