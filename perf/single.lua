-- wrk: one event per POST. The timestamp of all events is the start of the run.
wrk.method = "POST"
wrk.headers["Content-Type"] = "application/json"
wrk.body = string.format(
  '{"timestamp":"%s","service":"checkout","message":"payment accepted in 128 ms for order 4711",' ..
  '"metadata":{"region":"eu-west-1","attempt":1,"trace":"4bf92f3577b34da6a3ce929d0e0e4736"}}',
  os.date("!%Y-%m-%dT%H:%M:%SZ"))
