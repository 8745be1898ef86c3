-- The volumes with one of some ids in their name and, with their snapshots, those that they were cloned from, down to the base.
local volumes = {}

local function add(name)
  local found = describe(name)
  if not found then
    return
  end
  volumes[name] = found
  if args.snapshots and name:sub(1, #args.bases) ~= args.bases then
    local origin = zfs.get_prop(name, "origin")
    if origin and origin ~= "" then
      found.origin = origin
      local volume = origin:sub(1, origin:find("@", 1, true) - 1)
      if not volumes[volume] and volume:sub(1, #args.bases) ~= args.bases then
        add(volume)
      end
    end
  end
end

for container in pairs(args.containers) do
  for name in zfs.list.children(container) do
    for id in pairs(args.ids) do
      if name:find(id, #container, true) and not volumes[name] then
        add(name)
      end
    end
  end
end

local available
if args.available then
  available = zfs.get_prop(args.root, "available")
end
return { volumes = volumes, available = available }
