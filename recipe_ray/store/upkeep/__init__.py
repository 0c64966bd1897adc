"""Looking after a table: deleting, compacting, rolling back, vacuuming, erasing, migrating."""
