"""A cluster of librdkafka's mock brokers, for what a real one does not do when it is asked to.

    mock.py LIBRARY BROKERS

LIBRARY is librdkafka 2.4 or newer, as Python's confluent-kafka brings it along. Prints the brokers' addresses, then carries out one command a line and says "ok":

    topic NAME PARTITIONS           make a topic
    leader NAME PARTITION BROKER    another broker leads the partition
    refuse NAME CODE                metadata of the topic is this error; 0 takes it back
    errors API CODE...              the next requests of this API are answered so
    clear API                       no more of these
    rtt BROKER MILLISECONDS         every answer of the broker takes so long
    down BROKER, up BROKER          the broker is away, and back
"""

import ctypes
import sys

lib = ctypes.CDLL(sys.argv[1])
p, i, s, z = ctypes.c_void_p, ctypes.c_int, ctypes.c_char_p, ctypes.c_size_t
for name, result, *args in [
    ("rd_kafka_new", p, i, p, p, z),
    ("rd_kafka_mock_cluster_new", p, p, i),
    ("rd_kafka_mock_cluster_bootstraps", s, p),
    ("rd_kafka_mock_topic_create", i, p, s, i, i),
    ("rd_kafka_mock_partition_set_leader", i, p, s, ctypes.c_int32, ctypes.c_int32),
    ("rd_kafka_mock_topic_set_error", None, p, s, i),
    ("rd_kafka_mock_push_request_errors_array", None, p, ctypes.c_int16, z, p),
    ("rd_kafka_mock_clear_request_errors", None, p, ctypes.c_int16),
    ("rd_kafka_mock_broker_set_rtt", i, p, ctypes.c_int32, i),
    ("rd_kafka_mock_broker_set_down", i, p, ctypes.c_int32),
    ("rd_kafka_mock_broker_set_up", i, p, ctypes.c_int32),
]:
    function = getattr(lib, name)
    function.restype, function.argtypes = result, args

error = ctypes.create_string_buffer(512)
client = lib.rd_kafka_new(0, None, error, len(error))
cluster = lib.rd_kafka_mock_cluster_new(client, int(sys.argv[2]))
assert cluster, error.value
print(lib.rd_kafka_mock_cluster_bootstraps(cluster).decode(), flush=True)


def errors(api, *codes):
    array = (i * len(codes))(*map(int, codes))
    lib.rd_kafka_mock_push_request_errors_array(cluster, int(api), len(codes), array)


commands = {
    "topic": lambda name, count: lib.rd_kafka_mock_topic_create(cluster, name.encode(), int(count), 1),
    "leader": lambda name, part, broker: lib.rd_kafka_mock_partition_set_leader(
        cluster, name.encode(), int(part), int(broker)
    ),
    "refuse": lambda name, code: lib.rd_kafka_mock_topic_set_error(cluster, name.encode(), int(code)),
    "errors": errors,
    "clear": lambda api: lib.rd_kafka_mock_clear_request_errors(cluster, int(api)),
    "rtt": lambda broker, ms: lib.rd_kafka_mock_broker_set_rtt(cluster, int(broker), int(ms)),
    "down": lambda broker: lib.rd_kafka_mock_broker_set_down(cluster, int(broker)),
    "up": lambda broker: lib.rd_kafka_mock_broker_set_up(cluster, int(broker)),
}
for line in sys.stdin:
    name, *arguments = line.split()
    failed = commands[name](*arguments)
    print(f"error {failed}" if failed else "ok", flush=True)
