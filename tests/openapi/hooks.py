"""Makes the data that Schemathesis generates as valid as the schemas cannot say. Data that is invalid on
purpose is left as it is."""

import copy
import datetime
import json

import schemathesis

TEXT_OF_EVENTS = ("text/plain", "application/x-ndjson", "application/ndjson", "application/jsonl")
MAPPED = ("application/json-lines", "application/stream+json")
MAPPING = ("time_field", "message_field", "service_field", "service", "extra", "dedup")


GROUP_PROTOBUF = "application/vnd.google.protobuf; proto=io.prometheus.client.MetricFamily; encoding=delimited"


@schemathesis.serializer(GROUP_PROTOBUF, "application/x-ndjson", "application/ndjson", "application/jsonl", *MAPPED)
def as_text(context, value):
    return value if isinstance(value, bytes) else str(value).encode()


def now(hours=0):
    time = datetime.datetime.now(datetime.timezone.utc) - datetime.timedelta(hours=hours)
    return time.strftime("%Y-%m-%dT%H:%M:%SZ")


def event():
    return json.dumps({"timestamp": now(), "service": "schemathesis", "message": "valid"})


@schemathesis.hook
def before_call(context, case, kwargs):
    if case.meta is None or not case.meta.generation.mode.is_positive:
        return
    # The generator does not compress bodies.
    if case.headers and "Content-Encoding" in case.headers:
        case.headers["Content-Encoding"] = "identity"
    query = case.query
    if query:
        # A cursor has a checksum.
        query.pop("cursor", None)
        # `from` must be before `to`, and both after 1970.
        for name, hours in (("from", 24), ("to", 0)):
            if name in query:
                query[name] = now(hours)
    if case.operation.label == "POST /events":
        make_events_valid(case)
    elif case.operation.path == "/metrics/job/{job}" and case.media_type:
        # A body must be in Prometheus' text format; the generator cannot make protobuf.
        case.media_type, case.body = "text/plain", "# TYPE a counter\na 1\n"
    elif case.operation.label == "POST /services/collector/event":
        # U+0000 is refused at any depth.
        case.body = {"event": "valid"}
    elif case.operation.label == "POST /metrics/push":
        # The members of a metric depend on its type, and on metrics pushed before.
        metrics = {"metrics": [{"name": "schemathesis_total", "type": "counter", "value": 1}]}
        case.body = json.dumps(metrics) if case.media_type == "text/plain" else metrics


def make_events_valid(case):
    """A time must be near the present; text must be events; only bodies of fields that the parameters
    name can be mapped."""
    if case.query:
        for name in MAPPING:
            case.query.pop(name, None)
    if case.media_type in TEXT_OF_EVENTS or case.media_type in MAPPED:
        case.body = event()
        if case.media_type in MAPPED:
            # A stream of objects is not JSON, as the generator would write it.
            case.media_type, case.query = "application/json-lines", {"extra": "metadata"}
        return
    name = "time" if "cloudevents" in case.media_type else "timestamp"
    case.body = copy.deepcopy(case.body)
    for record in case.body if isinstance(case.body, list) else [case.body]:
        if isinstance(record, dict) and (name in record or name == "timestamp"):
            record[name] = now()
