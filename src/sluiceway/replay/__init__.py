"""A backlog run through the same runner as Kafka's, with files for edges; and what came of it."""
