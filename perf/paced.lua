-- The events of single.lua at a constant rate: each connection waits `CONNECTIONS / RATE` seconds
-- between two requests.
local here = os.getenv("PERF_DIR")
dofile(here .. "/single.lua")
local wait = 1000 * tonumber(os.getenv("CONNECTIONS")) / tonumber(os.getenv("RATE"))

function delay()
  return wait
end
