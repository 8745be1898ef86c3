-- All about some volumes and their snapshots. Of user properties only ours count, and only those set on the dataset
-- itself: others are inherited by whatever anyone makes below it.
local args = ...

local function tags(name)
  local found = {}
  for property, value, source in zfs.list.user_properties(name) do
    if source == name and property:sub(1, #args.prefix) == args.prefix then
      found[property:sub(#args.prefix + 1)] = value
    end
  end
  return found
end

local function snapshot(name)
  local clones = {}
  for clone in zfs.list.clones(name) do
    clones[clone] = true
  end
  return {
    tags = tags(name),
    clones = clones,
    bytes = zfs.get_prop(name, "volsize"),
    created = zfs.get_prop(name, "createtxg"),
    written = zfs.get_prop(name, "written"),
  }
end

local volumes = {}
for name in pairs(args.names) do
  if zfs.exists(name) then
    local snapshots = {}
    for full in zfs.list.snapshots(name) do
      snapshots[full] = snapshot(full)
    end
    volumes[name] = {
      tags = tags(name),
      snapshots = snapshots,
      origin = zfs.get_prop(name, "origin"),
      bytes = zfs.get_prop(name, "volsize"),
      created = zfs.get_prop(name, "createtxg"),
      written = zfs.get_prop(name, "written"),
    }
  end
end
return volumes
