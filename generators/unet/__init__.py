"""The U-Nets of ADM and their files."""
