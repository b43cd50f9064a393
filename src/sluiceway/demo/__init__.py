"""The demo: real bank tickets with recorded answers, through an embedded Kafka and real worker processes."""
