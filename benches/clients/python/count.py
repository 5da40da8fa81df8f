"""A client as Salesforce's own example for Python is written: grpcio and fastavro, counting what comes.

Environment: ENDPOINT (host:port; TLS), CA (file), TOKEN, INSTANCE_URL, ORG_ID, TOPIC, COUNT, FROM (earliest or latest).
Standard output: one line of JSON when COUNT events have come; then it waits for the end of its standard input, so that
its memory can be looked at. With FROM=latest the ID of an event is the time at which it was published, in
microseconds, and the figures hold the time from there to the decoded event.
"""

import io
import json
import os
import queue
import resource
import sys
import time

import fastavro
import grpc
import pubsub_api_pb2 as pb2
import pubsub_api_pb2_grpc as pb2_grpc

ENV = os.environ
WINDOW = 100


def cpu_seconds():
    used = resource.getrusage(resource.RUSAGE_SELF)
    return used.ru_utime + used.ru_stime


def main():
    with open(ENV["CA"], "rb") as file:
        credentials = grpc.ssl_channel_credentials(file.read())
    channel = grpc.secure_channel(ENV["ENDPOINT"], credentials)
    stub = pb2_grpc.PubSubStub(channel)
    metadata = (
        ("accesstoken", ENV["TOKEN"]),
        ("instanceurl", ENV["INSTANCE_URL"]),
        ("tenantid", ENV["ORG_ID"]),
    )
    requests = queue.SimpleQueue()
    preset = pb2.ReplayPreset.LATEST if ENV["FROM"] == "latest" else pb2.ReplayPreset.EARLIEST
    requests.put(pb2.FetchRequest(topic_name=ENV["TOPIC"], replay_preset=preset, num_requested=WINDOW))
    responses = stub.Subscribe(iter(requests.get, None), metadata=metadata)
    wanted, stamped = int(ENV["COUNT"]), ENV["FROM"] == "latest"
    schemas, latencies = {}, []
    received, began, cpu, first = 0, 0.0, 0.0, 0
    for response in responses:
        if not response.events:
            continue
        requests.put(pb2.FetchRequest(topic_name=ENV["TOPIC"], num_requested=len(response.events)))
        for item in response.events:
            event = item.event
            schema = schemas.get(event.schema_id)
            if schema is None:
                answer = stub.GetSchema(pb2.SchemaRequest(schema_id=event.schema_id), metadata=metadata)
                schema = schemas[event.schema_id] = fastavro.parse_schema(json.loads(answer.schema_json))
            fastavro.schemaless_reader(io.BytesIO(event.payload), schema)
            if stamped and event.id.isdigit():
                latencies.append(time.time() * 1e6 - int(event.id))
        received += len(response.events)
        if not first:
            first, began, cpu = received, time.monotonic(), cpu_seconds()
        if received >= wanted:
            break
    latencies.sort()

    def at(share):
        return latencies[min(len(latencies) - 1, int(len(latencies) * share))] if latencies else None

    figures = {
        "events": received - first,
        "seconds": time.monotonic() - began,
        "cpu_seconds": cpu_seconds() - cpu,
        "p50_us": at(0.5),
        "p99_us": at(0.99),
    }
    print(json.dumps(figures), flush=True)
    sys.stdin.read()
    # Without waiting for the channel's own threads.
    os._exit(0)


main()
