"""The Kafka edge: the only importer of faust and aiokafka."""
