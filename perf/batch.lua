-- wrk: 100 events per POST, as NDJSON.
dofile((os.getenv("PERF_DIR") or "perf") .. "/single.lua")
wrk.headers["Content-Type"] = "application/x-ndjson"
wrk.body = string.rep(wrk.body .. "\n", 100)
