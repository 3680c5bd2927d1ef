# Converts the lines of a log file into events, one JSON object per line, in files of at most 1,000
# events and 2 MB.
#
# Variables: file (its name), base (the name without directory and .log), mtime (epoch seconds), tag
# (identifies the file), now (epoch seconds), out (prefix of the output files). Run with LC_ALL=C:
# lengths are bytes. Every event begins with its timestamp, so that send_again in scripts/demo can
# replace it.

function json(text,   at, rest, safe, code) {
  gsub(/\\/, "&&", text)
  gsub(/"/, "\\\"", text)
  gsub(/\t/, "\\t", text)
  gsub(/\r/, "\\r", text)
  if (text !~ /[\001-\037]/) return "\"" text "\""
  for (code = 1; code < 32; code++) {
    at = sprintf("%c", code)
    if (index(text, at)) {
      rest = text
      text = ""
      while ((safe = index(rest, at)) > 0) {
        text = text substr(rest, 1, safe - 1) sprintf("\\u%04x", code)
        rest = substr(rest, safe + 1)
      }
      text = text rest
    }
  }
  return "\"" text "\""
}

# Truncates to at most this many bytes, without a partial character at the end.
function cut(text, most) {
  if (length(text) <= most) return text
  while (most > 1 && substr(text, most + 1, 1) ~ /[\200-\277]/) most--
  return substr(text, 1, most)
}

# Converts local time to UTC. The last result is cached, since most lines have the same second as
# the line before.
function utc(text,   fields) {
  if (text != last_text) {
    fields = text
    gsub(/[-T:]/, " ", fields)
    last_text = text
    last_utc = strftime("%Y-%m-%dT%H:%M:%SZ", mktime(fields), 1)
  }
  return last_utc
}

# Parses "host prog[pid]: message", the format of syslog.
function syslog(rest,   space, colon, name, bracket) {
  space = index(rest, " ")
  metadata = metadata ",\"host\":" json(cut(substr(rest, 1, space - 1), 255))
  rest = substr(rest, space + 1)
  colon = index(rest, ": ")
  if (!colon && rest ~ /:$/) colon = length(rest)
  name = substr(rest, 1, colon - 1)
  if (!colon || name ~ / / || name == "") { message = rest; return }
  bracket = index(name, "[")
  if (bracket > 1) {
    metadata = metadata ",\"pid\":" json(substr(name, bracket + 1, length(name) - bracket - 1))
    name = substr(name, 1, bracket - 1)
  }
  service = name
  message = substr(rest, colon + 2)
}

BEGIN {
  split("Jan Feb Mar Apr May Jun Jul Aug Sep Oct Nov Dec", names, " ")
  for (number in names) month[names[number]] = number
  year = strftime("%Y", now)
  file_time = strftime("%Y-%m-%dT%H:%M:%SZ", mtime, 1)
  day = "[0-9][0-9][0-9][0-9]-[0-9][0-9]-[0-9][0-9]"
  clock = "[0-9][0-9]:[0-9][0-9]:[0-9][0-9]"
  dpkg = "^" day " " clock " "
  alternatives = "^[a-z-]+ " day " " clock ": "
  iso = "^" day "T" clock "([.][0-9]+)?(Z|[+-][0-9][0-9]:[0-9][0-9]) [^ ]+ "
  classic = "^[A-Z][a-z][a-z] [ 0-9][0-9] " clock " [^ ]+ "
  rows = bytes = part = 0
}

{
  service = base
  time = file_time
  message = $0
  metadata = "\"file\":" json(file) ",\"line\":" NR
  if ($0 ~ dpkg) {
    time = utc(substr($0, 1, 19))
    message = substr($0, 21)
  } else if ($0 ~ iso) {
    time = substr($0, 1, index($0, " ") - 1)
    syslog(substr($0, index($0, " ") + 1))
  } else if ($0 ~ alternatives) {
    service = substr($0, 1, index($0, " ") - 1)
    rest = substr($0, index($0, " ") + 1)
    time = utc(substr(rest, 1, 19))
    message = substr(rest, 22)
  } else if ($0 ~ classic) {
    number = month[substr($0, 1, 3)]
    moment = number " " (substr($0, 5, 2) + 0) " " substr($0, 8, 8)
    gsub(/:/, " ", moment)
    seconds = mktime(year " " moment)
    # The format has no year: a time in the future belongs to last year.
    if (seconds > now + 86400) seconds = mktime((year - 1) " " moment)
    if (number) { time = strftime("%Y-%m-%dT%H:%M:%SZ", seconds, 1); syslog(substr($0, 17)) }
  }
  # A message must not be empty and has at most 64 KiB.
  if (message == "") message = "(empty)"
  if (length(message) > 65536) metadata = metadata ",\"bytes\":" length(message)
  service = cut(service, 100)
  event = "{\"timestamp\":\"" time "\",\"metadata\":{" metadata "},\"idempotency_key\":\"" tag ":" NR ":" length($0) \
    "\",\"service\":" json(service) ",\"message\":" json(cut(message, 65536)) "}"
  if (rows == 1000 || bytes > 2000000) { close(name); rows = bytes = 0 }
  if (rows == 0) name = out sprintf("%06d", ++part)
  print event > name
  rows++
  bytes += length(event)
  count[service]++
}

END { for (service in count) print count[service] "\t" service }
