"""Decision points of users and pairs of preferred and passed-over items, from events (Spark)."""
