// The guestbook: `write TEXT` writes an entry, `read TEXT` looks for one.

import { check, run } from './page.mjs';

await run(async (page, url, action, ...words) => {
  const text = words.join(' ');
  check((await page.title()) === 'Guestbook', 'this is the guestbook');
  if (action === 'write') {
    await page.fill('input[name=entry]', text);
    await Promise.all([page.waitForNavigation(), page.click('button')]);
  }
  // What the leader was told reaches a follower a moment later.
  const entry = page.locator('#entries li', { hasText: text });
  for (let tries = 0; tries < 100 && (await entry.count()) === 0; tries += 1) await page.reload();
  check((await entry.count()) > 0, `no entry with ${text}`);
});
