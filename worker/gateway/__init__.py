"""The producer: takes invocations by HTTP and puts them on the queue."""
