-- Changes one dataset, if it is the kind of dataset that it is taken for, has our tag itself, and is below our own.
-- Returns an error number, 0 for done, or what stands in the way.
local name = args.name

if name:sub(1, #args.root + 1) ~= args.root .. "/" then
  return { refused = "it is not below " .. args.root }
end
if not zfs.exists(name) then
  return { error = 2 }
end
local is = own(name, args.is)
if not is or is:sub(1, #args.ours) ~= args.ours then
  return { refused = "it does not have the tag " .. args.is .. " of this state folder" }
end
local kind = "volume"
if name:find("@", 1, true) then
  kind = "snapshot"
end
if zfs.get_prop(name, "type") ~= kind then
  return { refused = "it is no " .. kind }
end

if args.change == "set" then
  return { error = zfs.sync.set_prop(name, args.property, args.value) }
elseif args.change == "clear" then
  return { error = zfs.sync.inherit(name, args.property) }
elseif args.change == "promote" then
  return { error = zfs.sync.promote(name) }
elseif args.change == "destroy" then
  if kind == "volume" then
    for snapshot in zfs.list.snapshots(name) do
      return { refused = "it has the snapshot " .. snapshot }
    end
  end
  return { error = zfs.sync.destroy(name) }
end
return { refused = "nobody knows how to " .. args.change }
