"""Workers in processes of their own: as their parent sees them, and inside."""
