-- wrk: batches of 10 events with unique messages, so that SQL can detect duplicates. Counts events
-- by response and appends the counts to the file UNIQUE_OUT. UNIQUE_PAD is the number of bytes
-- added to a message.
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
