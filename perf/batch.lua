-- wrk: 100 events a POST, as NDJSON.
dofile((os.getenv("PERF_DIR") or "perf") .. "/single.lua")
wrk.headers["Content-Type"] = "application/x-ndjson"
wrk.body = string.rep(wrk.body .. "\n", 100)
