-- wrk: batches of 10 events, each with a message of its own, so that SQL can tell whether one is stored twice. Counts
-- what was answered and writes it to the file that UNIQUE_OUT names. Messages are UNIQUE_PAD bytes longer.
local threads = {}
local next_thread = 0

function setup(thread)
  next_thread = next_thread + 1
  thread:set("number", next_thread)
  table.insert(threads, thread)
end

function init()
  accepted, refused, other, sent = 0, 0, 0, 0
  local time = os.date("!%Y-%m-%dT%H:%M:%SZ")
  before = '{"timestamp":"' .. time .. '","service":"million","message":"' .. os.time() .. "-" .. number .. "-"
  after = string.rep("x", tonumber(os.getenv("UNIQUE_PAD") or 0)) .. '"}'
  headers = { ["Content-Type"] = "application/x-ndjson" }
end

function request()
  local lines = {}
  for index = 1, 10 do
    sent = sent + 1
    lines[index] = before .. sent .. after
  end
  return wrk.format("POST", nil, headers, table.concat(lines, "\n"))
end

function response(status)
  if status == 202 then accepted = accepted + 10
  elseif status == 429 then refused = refused + 10
  else other = other + 10 end
end

function done()
  local total = { accepted = 0, refused = 0, other = 0 }
  for _, thread in ipairs(threads) do
    for name in pairs(total) do total[name] = total[name] + thread:get(name) end
  end
  local out = assert(io.open(os.getenv("UNIQUE_OUT"), "a"))
  out:write(total.accepted, " ", total.refused, " ", total.other, "\n")
  out:close()
end
