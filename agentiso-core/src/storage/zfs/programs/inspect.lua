-- What some file systems are, and whose.
local found = {}
for name in pairs(args.names) do
  if zfs.exists(name) then
    found[name] = { type = zfs.get_prop(name, "type"), state = own(name, args.state) }
  end
end
return found
