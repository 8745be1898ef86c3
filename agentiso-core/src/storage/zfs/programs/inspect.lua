-- What a file system is: whose it is, and what is in it besides file systems of ours.
local args = ...
if not zfs.exists(args.name) then
  return { exists = false }
end
local tags = {}
for property, value, source in zfs.list.user_properties(args.name) do
  if source == args.name and property:sub(1, #args.prefix) == args.prefix then
    tags[property:sub(#args.prefix + 1)] = value
  end
end
return {
  exists = true,
  type = zfs.get_prop(args.name, "type"),
  tags = tags,
  available = zfs.get_prop(args.name, "available"),
}
