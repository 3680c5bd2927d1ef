-- Pushes ten series to one of 64 groups of a gateway, like a service that pushes its own metrics.
-- PUSH=sum sends one counter increment to POST /metrics/push instead.
local bodies, nth = {}, 0
local sum = os.getenv("PUSH") == "sum"
for group = 1, 64 do
  local lines = { "# TYPE bench_requests_total counter" }
  for series = 1, 5 do
    lines[#lines + 1] = string.format('bench_requests_total{route="/api/%d",status="200"} %d', series, series * group)
  end
  lines[#lines + 1] = "# TYPE bench_temperature gauge"
  for series = 1, 5 do
    lines[#lines + 1] = string.format('bench_temperature{sensor="s%d"} %d.5', series, series)
  end
  bodies[group] = table.concat(lines, "\n") .. "\n"
end

function request()
  nth = nth % 64 + 1
  if sum then
    local body = string.format(
      '{"metrics":[{"name":"bench_clicks_total","type":"counter","value":1,"labels":{"page":"/p/%d"}}]}', nth)
    return wrk.format("POST", "/metrics/push", { ["Content-Type"] = "application/json" }, body)
  end
  return wrk.format("PUT", "/metrics/job/bench/instance/i" .. nth, {}, bodies[nth])
end
