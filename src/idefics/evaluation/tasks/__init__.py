"""What models are asked, a file each."""
